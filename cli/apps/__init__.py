"""The app commands: clients of the HTTP API, named and shaped as the heroku command's."""
