# SPDX-License-Identifier: Apache-2.0
"""One file per rewrite: `OPERATORS` says what it takes as (domain, operator), `rewrite` what stands for it."""
