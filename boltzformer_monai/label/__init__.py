"""The MONAI Label app: free-text prompts in 3D Slicer, OHIF and a page of its own, learning from corrected labels.

``boltzformer serve FOLDER --checkpoint PATH`` starts it, or MONAI Label itself with this folder as ``--app``. Only this
room needs MONAI Label; importing the package does not.
"""
