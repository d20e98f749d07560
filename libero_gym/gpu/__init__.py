"""Many worlds at once on a device, by Warp (the extra ``[gpu]``). Nothing outside of this folder imports Warp."""
