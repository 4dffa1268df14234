#!/bin/sh
# gcc 14.2.0 (Debian 13: cpp-14-x86-64-linux-gnu 14.2.0-19), -O2, and 12.2.0 by hand: whether
# "!__builtin_memcmp(a, b, 12)" is compared in line or is a call of memcmp() is up to the function
# that it ends in. In one that is cold it is a call.
# Linux 7.3.4 (Debian 13's backports: linux-source-7.3 7.3.4-1~bpo13+1) counts on the other thing: a
# comment in cpuid_base_hypervisor() says that it must not become a call, as it is used in the PVH
# entry, before memcmp() can run if it is instrumented. That entry is __init, which is cold.
# Seen: a kernel with KASAN, without AMD_MEM_ENCRYPT, made with gcc 14, ended in QEMU before its
# first message. With gcc 12 the same source has no such call there, and it starts.
# Guess before the first run: __builtin_ is what makes it no call.
# Here the debug kernel is made with KASAN_SANITIZE_string.o=n for that (vm/debug.config).
# Downloads 200 MB.
set -eu
. "$(dirname "$0")/fetch"
fetch linux-source-7.3 7.3.4-1~bpo13+1 trixie-backports
tar -xf "$root"/usr/src/linux-source-7.3.tar.xz --strip-components=1 linux-source-7.3/arch/x86/include/asm/cpuid/api.h \
	linux-source-7.3/arch/x86/platform/pvh/enlighten.c linux-source-7.3/include/linux/init.h
expect "7.3.4: what it counts on" 0 'must not compile to "call memcmp"' grep memcmp arch/x86/include/asm/cpuid/api.h
expect "7.3.4: where it ends in" 0 '__init' grep 'xen_prepare_pvh(void)' arch/x86/platform/pvh/enlighten.c
expect "7.3.4: what that is" 0 '__cold' grep 'define __init	' include/linux/init.h
cat >same.c <<'END'
int same(const char *a, const char *b) { return !__builtin_memcmp(a, b, 12); }
END
cat >cold.c <<'END'
__attribute__((cold)) int same(const char *a, const char *b) { return !__builtin_memcmp(a, b, 12); }
END
compile() { run "$cc1" -quiet -O2 -o - "$1.c"; }
fetch_all cpp-14-x86-64-linux-gnu 14.2.0-19 trixie
cc1=../libexec/gcc/x86_64-linux-gnu/14/cc1
expect "gcc 14: not cold" 0 '!memcmp' compile same
expect "gcc 14: cold" 0 'call.*memcmp' compile cold
