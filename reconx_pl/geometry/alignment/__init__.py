"""Global alignment: point maps of pairs to one world, a camera for every view (DUSt3R, section 3.4)."""
