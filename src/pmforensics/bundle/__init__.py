"""The evidence at rest: a BagIt 1.0 bag that is written as it is collected, sealed, and can be finished later."""
