"""DUSt3R (Wang et al., CVPR 2024): two images to point maps in the first camera's frame, and their confidence."""
