"""The embedded suite: a gantry gripper over a table of coloured things, in plain MuJoCo."""
