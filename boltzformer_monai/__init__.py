"""BoltzFormer for MONAI: text-prompted segmentation of small objects in CT and MR.

The rooms, in the order in which data pass through them: ``io`` → ``data`` → ``transforms`` → ``networks`` → ``engines``
→ ``inferers`` → command line. A room imports rooms to its left, never to its right (docs/architecture.md).
"""

__version__ = "0.1.0"
