"""Puppets: talking clips of real faces whose driving curves and defects are known."""
