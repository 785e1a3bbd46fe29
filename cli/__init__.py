"""The ``davit`` command: a client of the API, and the administration of the host that Davit runs on."""
