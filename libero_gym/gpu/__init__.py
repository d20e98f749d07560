"""Many worlds at once on a device, by Warp (the extra ``[gpu]``). Nothing outside of this folder imports Warp.

Physics is "batched": the exact simulator's equations in single precision, solved by MuJoCo Warp. States are near
LIBERO's and never equal to the bit. A GPU and the CPU run the same kernels.

* `scene_batch`: the worlds of one scene, their control step and their reset;
* `states`: rows that hold a world's whole state, in tables on the device;
* `goals`: LIBERO's predicates and progress, on the device;
* `arm_kernels`, `kernels`: what a control step launches between MuJoCo Warp's own stages;
* `camera`: frames of many worlds.
"""
