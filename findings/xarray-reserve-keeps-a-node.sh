#!/bin/sh
# Linux 6.12.117 (Debian 12: linux-source-6.12 6.12.117-1~deb12u1), its xarray built for user
# space with its own tools/testing/radix-tree (liburcu 0.13.2):
# - an entry stored at index 0 of an empty xarray stands in its head: there is no node, and
#   xa_find_after() has nothing to walk;
# - reserved first with xa_reserve(), then stored at the same index: the node stays, and
#   xa_find_after() takes more than four times as long;
# - the node goes when the entry is erased.
# Guess before the first run: an xarray with one entry at index 0 is the same however the
# entry got there.
# So a reservation in an xarray that mostly has one entry, at index 0, makes each walk over it
# dearer until it is empty.
set -eu
. "$(dirname "$0")/fetch"
fetch linux-source-6.12 6.12.117-1~deb12u1
fetch liburcu-dev 0.13.2-1
fetch liburcu8 0.13.2-1

tar -xf "$root"/usr/src/linux-source-6.12.tar.xz --wildcards --no-wildcards-match-slash --strip-components=1 \
	'linux-source-6.12/lib/*.[ch]' 'linux-source-6.12/include/linux/*.h'
tar -xf "$root"/usr/src/linux-source-6.12.tar.xz --strip-components=1 \
	linux-source-6.12/tools/testing/radix-tree linux-source-6.12/tools/testing/shared \
	linux-source-6.12/tools/include linux-source-6.12/tools/lib linux-source-6.12/tools/arch
cd tools/testing/radix-tree
cat >xarray.c <<'END'
#include "test.h"
#include <linux/radix-tree.h>
#include <time.h>

static DEFINE_XARRAY(plain);
static DEFINE_XARRAY(reserved);

static int node(struct xarray *xa)
{
	return xa_is_node(rcu_dereference_raw(xa->xa_head));
}

static double walk(struct xarray *xa)
{
	struct timespec a, b;
	unsigned long index;
	int i;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
	for (i = 0; i < 20000000; i++) {
		index = 0;
		xa_find_after(xa, &index, ULONG_MAX, XA_PRESENT);
	}
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
	return (b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec);
}

int main(void)
{
	double one, two;

	rcu_register_thread();
	radix_tree_init();
	xa_store(&plain, 0, xa_mk_value(1), GFP_KERNEL);
	printf("stored: %s\n", node(&plain) ? "a node" : "no node");
	if (xa_reserve(&reserved, 0, GFP_KERNEL))
		return 1;
	xa_store(&reserved, 0, xa_mk_value(1), GFP_KERNEL);
	printf("reserved, then stored: %s\n", node(&reserved) ? "a node" : "no node");
	one = walk(&plain);
	two = walk(&reserved);
	printf("xa_find_after(): %s (%.1f times)\n", two > 4 * one ? "over 4 times as long" : "about as long", two / one);
	xa_erase(&reserved, 0);
	printf("erased: %s\n", node(&reserved) ? "a node" : "no node");
	return 0;
}
END
urcu="-I$root/usr/include -I$root/usr/include/x86_64-linux-gnu"
make -s SHIFT=6 CFLAGS="-O2 -w -D_LGPL_SOURCE -I../shared -I. -I../../include -I../../../lib $urcu" \
	LDFLAGS="-L$root/usr/lib/x86_64-linux-gnu -Wl,-rpath,$root/usr/lib/x86_64-linux-gnu" xarray >"$tmp/make.log" 2>&1 ||
	{ tail -n 30 "$tmp/make.log" >&2; echo "$me: it does not compile" >&2; exit 1; }
expect "an entry stored" 0 '^stored: no node$' ./xarray
expect "reserved first" 0 '^reserved, then stored: a node$' ./xarray
expect "the walk" 0 'xa_find_after(): over 4 times as long' ./xarray
expect "after erasing" 0 '^erased: no node$' ./xarray
