"""What every room stands on: settings, errors, running programs, the wire between processes, logging.

Nothing in here knows what an app or a dyno is.
"""
