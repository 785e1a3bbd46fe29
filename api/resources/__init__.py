"""One module per resource of the Platform API; each has a :class:`api.routing.Resource` named ``resource``."""
