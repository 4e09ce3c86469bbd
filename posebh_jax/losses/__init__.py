"""PoseBH's loss terms, pure functions: `heatmap`, `prototype` (PPC and PPD), `cluster` and `cross_type`.

Every loss is the *per-device loss*: local numerator over global denominator, so that the sum over the devices
of `axis_name` is the loss of the global batch. Auxiliary values are global and equal on all devices. Maps are [B, h, w,
T], targets and weights those of `KeypointIndex.to_global`: zero for keypoints of other datasets. Nothing here changes
state: the prototypes move in `posebh_jax/method.py`, by `prototypes.update_prototypes`.
"""
