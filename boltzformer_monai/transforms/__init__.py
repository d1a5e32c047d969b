"""MONAI dictionary transforms: slices to network inputs, and masks back to slices."""

from boltzformer_monai.transforms.augment import light_augmentation, paper_augmentation, strong_augmentation
from boltzformer_monai.transforms.load import LoadSliced
from boltzformer_monai.transforms.prompts import SelectPromptsd
from boltzformer_monai.transforms.square import SquareFit
from boltzformer_monai.transforms.tokenizer import PromptTokenizer

__all__ = [
    "LoadSliced",
    "PromptTokenizer",
    "SelectPromptsd",
    "SquareFit",
    "light_augmentation",
    "paper_augmentation",
    "strong_augmentation",
]
