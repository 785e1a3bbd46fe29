"""The face for people who would rather look than type: server-rendered pages, kept alive over server-sent events.

Loaded when the first page is asked for (:mod:`dashboard.face`), so that a Davit nobody looks at pays nothing for it.
"""
