"""BoltzFormer for MONAI: text-prompted segmentation of small objects in CT and MR.

The rooms, in the order in which data pass through them: ``io`` → ``data`` → ``transforms`` → ``networks`` → ``engines``
→ ``inferers`` → command line. A room imports rooms to its left, never to its right (docs/explanation/architecture.md).
"""

from boltzformer_monai.telemetry import switch_off_telemetry

__version__ = "0.1.0"

# Here, because it must come before any other import can make a connection, whichever way the package is used.
switch_off_telemetry()
