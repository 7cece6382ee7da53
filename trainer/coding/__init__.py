"""Lossless coding of images by a model's own distributions, one file a family: bits back with an ANS stack.

Latents are popped by q(z | x), then x is pushed by p(x | z) and z by p(z): on average an image takes its negative
bound.
"""
