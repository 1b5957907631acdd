"""A small 3-D network in two stages."""
