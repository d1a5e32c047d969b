"""Expert networks to compare with: U-Nets planned and trained by nnU-Net's published rules, on MONAI's DynUNet."""
