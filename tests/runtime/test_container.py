"""The container driver keeps the contract: all of it with crun; with runc what an OCI runtime could do otherwise."""

from __future__ import annotations

import pytest

from tests.runtime.contract import DriverContract, SharedKernelContract

pytestmark = [pytest.mark.root]


class TestWithCrun(SharedKernelContract):
    """Every test of the contract."""

    oci_runtime = "crun"


class TestWithRunc:
    """What crun and runc do differently. runc 1.1 cannot run a further command: it joins the user namespace first, and has
    no right then to join a network namespace that the host made."""

    oci_runtime = "runc"

    test_status = DriverContract.test_output_goes_to_the_fifos_and_the_status_is_the_commands
    test_slug = DriverContract.test_the_slug_is_its_app_and_writable
    test_environment = DriverContract.test_its_environment_is_the_given_one_and_nothing_else
    test_secrets = DriverContract.test_no_secret_stays_in_a_file_or_on_a_command_line
    test_descriptors = DriverContract.test_none_of_the_runtimes_descriptors_reach_it
    test_reopened_output = DriverContract.test_a_program_may_open_its_standard_output_again
    test_bind = DriverContract.test_a_bind_shows_the_hosts_files_as_its_own
    test_term = DriverContract.test_term_reaches_the_command_which_may_take_its_time
    test_memory = DriverContract.test_memory_beyond_the_limit_ends_it_and_is_told
    test_fork_bomb = DriverContract.test_a_fork_bomb_hurts_only_itself
    test_filter = SharedKernelContract.test_system_calls_are_filtered
    test_capabilities = DriverContract.test_it_has_no_capabilities_and_gains_none
    test_sys = DriverContract.test_sys_is_hidden_and_proc_sys_is_readonly
    test_system_calls = SharedKernelContract.test_dangerous_system_calls_are_refused
    test_terminal = DriverContract.test_a_terminal_has_a_size_that_changes
