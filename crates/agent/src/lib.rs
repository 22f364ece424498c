//! The agent: tools, prompts, rendering, the ReAct loop, grading.
