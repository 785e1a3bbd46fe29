"""The Platform API over HTTP: checks who you are, calls one operation of :mod:`state`, and renders. No business rules."""
