"""A rendered world of articulated people and animals whose keypoints are known exactly in every skeleton.

`scene` composes pictures and says what is seen in them, `people` and `animals` build the figures out of the
shapes of `figures`. `data_pipelines.builders.synthetic` writes it as datasets.
"""

from data_pipelines.synthetic_world.scene import (
    KINDS,
    Instance,
    Scene,
    crowd_index,
    render_scene,
    skeleton_keypoints,
)

__all__ = ["KINDS", "Instance", "Scene", "crowd_index", "render_scene", "skeleton_keypoints"]
