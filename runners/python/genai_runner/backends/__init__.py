# SPDX-License-Identifier: Apache-2.0
"""Engines, one file each. `base` is the interface."""
