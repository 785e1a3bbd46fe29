"""Dynos as OSv unikernels: one program and its kernel in one address space, started by QEMU from read-only images.

:mod:`~runtime.osv.driver` starts and finds them again, :mod:`~runtime.osv.dyno` is one of them, :mod:`~runtime.osv.machine`
composes QEMU's command line, :mod:`~runtime.osv.console` reads what the kernel and the app say, :mod:`~runtime.osv.images`
keeps the images that :mod:`slugs.osvimage` makes, :mod:`~runtime.osv.kernel` looks at the user's kernel,
:mod:`~runtime.osv.signals` brings signals in, :mod:`~runtime.osv.management` asks OSv's own REST server.
"""
