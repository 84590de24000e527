"""Views with depth, and clouds, rendered into other cameras: the conditions of a view generator, without gradients."""
