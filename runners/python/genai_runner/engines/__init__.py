# SPDX-License-Identifier: Apache-2.0
"""The stacks behind `genai_runner.interfaces`. A module of this folder is an engine and has `ENGINE`; its name with
`-` for `_` is the engine's. Each imports its stack late, when a pipeline is made."""
