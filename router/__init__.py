"""The router: HAProxy in front of every app. Composes its configuration, changes routes while it runs, reads its log."""
