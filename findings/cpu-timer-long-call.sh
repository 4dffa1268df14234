#!/bin/sh
# Linux 6.12.117 (Debian 12's linux-image-6.12.117+deb12-cloud-amd64), x86-64: SIGPROF of
# setitimer(ITIMER_PROF) does not end a long system call, which SIGALRM of ITIMER_REAL does.
# The time of CPU timers is looked at in task work, on the way back to user space
# (POSIX_CPU_TIMERS_TASK_WORK): in the call no signal is pending, for as long as it takes.
# Guess before the first run: both end it after the time that was set, since the kernel
# counts the CPU time while it works for the program, and the call looks for signals.
# So a watchdog, or a test that is to interrupt an ioctl, wants a clock of real time.
# (6.18 does the same, seen without a virtual machine.)
set -eu
. "$(dirname "$0")/fetch"
for c in qemu-system-x86_64 gcc cpio; do
	command -v $c >/dev/null || { echo "needs qemu-system-x86 gcc libc6-dev cpio; get them with: apt-get install" >&2; exit 1; }
done
fetch linux-image-6.12.117+deb12-cloud-amd64 6.12.117-1~deb12u1

cat >init.c <<'END'
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/time.h>
#include <unistd.h>

static void handler(int sig) { (void)sig; }

/* 0.2 s after the call has begun. Without a signal it fills all of the memory. */
static void call(const char *name, int which, size_t size)
{
	struct itimerval t = { .it_value.tv_usec = 200000 };
	char *mem = calloc(size, 1);
	ssize_t n;

	setitimer(which, &t, NULL);
	n = getrandom(mem, size, 0);
	printf("%s: %s\n", name, n == (ssize_t)size ? "not interrupted" : "interrupted");
	free(mem);
}

int main(void)
{
	char c;

	/* Waits until the kernel has random numbers, which is soon after the boot */
	getrandom(&c, 1, 0);
	signal(SIGALRM, handler);
	signal(SIGPROF, handler);
	call("ITIMER_REAL", ITIMER_REAL, 512 << 20);
	call("ITIMER_PROF", ITIMER_PROF, 512 << 20);
	fflush(stdout);
	reboot(RB_AUTOBOOT);
}
END
gcc -O2 -static -o init init.c
echo init | cpio -o -H newc --quiet >initrd
timeout 200 qemu-system-x86_64 -accel tcg -m 1536 -display none -no-reboot -serial stdio \
	-kernel "$root"/boot/vmlinuz-* -initrd initrd -append 'console=ttyS0 quiet panic=-1' |
	grep -a '^ITIMER' >said || :
expect "a timer of real time" 0 '^ITIMER_REAL: interrupted' cat said
expect "a timer of CPU time" 0 '^ITIMER_PROF: not interrupted' cat said
