"""Dynos as Linux microVMs: QEMU boots the distribution's cloud kernel into Davit's own guest agent, stack and slug are the very
images that containers run on.

:mod:`~runtime.microvm.driver` starts and finds them again, :mod:`~runtime.microvm.dyno` is one of them,
:mod:`~runtime.microvm.machine` composes QEMU's command line, :mod:`~runtime.microvm.protocol` is what host and guest agent say
to each other, :mod:`~runtime.microvm.agent` the host's end of it, :mod:`~runtime.microvm.acceleration` tries whether a guest
boots with KVM, :mod:`~runtime.microvm.kernel` makes and finds the kernel.
"""
