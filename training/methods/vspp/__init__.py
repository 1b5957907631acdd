"""Pretext task of PECoP: recognise the pace of a video segment."""
