"""A slug comes in, dynos run. The one process with root's powers: dynos, build sandboxes, networks, stacks."""
