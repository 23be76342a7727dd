# SPDX-License-Identifier: Apache-2.0
"""Write bundles: checkpoint -> graph -> variants -> pack -> prove -> file. The only place that imports torch, and late.

`from_checkpoint.build_checkpoint` builds from a Hugging Face checkpoint folder.
"""
