"""How apps do over time: requests from the router, memory and CPU from the cgroups, kept in files of fixed size."""
