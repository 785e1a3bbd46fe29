"""The host that Davit runs on: starting and stopping Davit, its state, what is missing."""
