"""Many worlds at once on a device, by Warp (the extra ``[gpu]``). Nothing outside of this folder imports Warp.

Physics is "batched": the exact simulator's equations in single precision, solved by MuJoCo Warp. States are near
LIBERO's and never equal to the bit. A GPU and the CPU run the same kernels.

* `vector`: the back end that `LiberoVectorEnv` asks; `places` says which environment has which world;
* `worlds`: a scene's worlds as environments take them; `scene_batch`: their control step and their reset;
* `states`: rows that hold a world's whole state, in tables on the device;
* `goals`: LIBERO's predicates and progress, on the device;
* `arm_kernels`, `kernels`: what a control step launches between MuJoCo Warp's own stages;
* `camera`, with `drawing`, `rays` and `shading`: frames of many worlds; `film` draws those of a scene's batches;
* `showing`, `tensors`: observations and infos, on the host or on the device.
"""
