"""Simulated moving objects and their undersampled images, made on the fly, to train networks on."""
