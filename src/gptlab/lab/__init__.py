"""The lab: an idea goes in, a verdict comes out, and what it cost. It reads run folders, and never imports torch."""
