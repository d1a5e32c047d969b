"""What a reader wants to know of a mask: its lesions, how large they are, and how they changed."""
