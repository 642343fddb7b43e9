"""The names that timm imports from torchvision, and no more, so that timm's models can be built without it.

torchvision has no build for the CPU torch that the tests run on. timm's models use none of these names; its data
pipelines do, and would fail at once.
"""
