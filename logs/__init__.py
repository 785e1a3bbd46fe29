"""Lines come in, tails read them: dyno output, the router's and the platform's lines, one recent window per app.

:mod:`logs.stream` is what the other rooms use; ``python -m logs`` collects what dynos print.
"""
