"""Numbers that every implementation of the renderers shares."""

#: (ours) Sky lies at this multiple of the largest finite depth of all views.
FAR = 50.0
#: (ours) Triangles with a corner nearer than this share of the largest finite depth are left out.
NEAR = 1e-5
#: How far outside a triangle, in pixels and as a share of its height, a pixel's centre may fall: rounding must not tear
#: holes along the border of an image that is seen from where it was taken.
EDGE = 1e-4
#: Twice the area, in pixels squared, below which a triangle is edge on.
MIN_AREA = 1e-9
#: What stands for a triangle: cut, of a surface, of sky. Kernels know the numbers by heart.
CUT, SURFACE, SKY_TRIANGLE = 0, 1, 2
