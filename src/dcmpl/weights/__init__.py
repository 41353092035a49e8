"""Pretrained backbones: found, checked, loaded strictly; and those that come with the package."""
