"""``nequip-md info``: what a model file holds, and what is installed on this machine."""
