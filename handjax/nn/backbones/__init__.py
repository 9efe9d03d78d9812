"""Backbones: image in, named feature maps out."""
