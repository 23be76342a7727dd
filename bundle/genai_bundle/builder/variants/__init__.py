# SPDX-License-Identifier: Apache-2.0
"""One file per variant: the portable graph rewritten into a backend's fastest form, over the same weights."""
