#!/bin/sh
# get_maintainer.pl of Linux 7.3 (Debian: linux-source-7.3 7.3.4-1~bpo13+1; 6.12.117 does it,
# too), called for a patch with a Fixes: tag: it asks git for that commit, and would list who
# signed it, in spite of --no-git --no-git-fallback. Only --no-fixes stops it. So a list of
# recipients depends on whose clone it was made in, and in a tree without that history git's
# errors are on stderr, with status 0.
# Guess before the first run: with these two options no git is asked for a person.
# Downloads 160 MB.
set -eu
. "$(dirname "$0")/fetch"
fetch linux-source-7.3 7.3.4-1~bpo13+1 trixie-backports
t=linux-source-7.3
tar -xJf "$root/usr/src/$t.tar.xz" $t/COPYING $t/CREDITS $t/Kbuild $t/MAINTAINERS $t/Makefile $t/README $t/scripts/get_maintainer.pl
cd $t
mkdir -p .git Documentation arch include drivers fs init ipc kernel lib bin
# Stands in for git: tells what it was asked for
cat >bin/git <<'END'
#!/bin/sh
[ "$1" != log ] || echo "asked: git log ... ${*##* }" >>calls
exit 1
END
chmod +x bin/git
cat >a.patch <<'END'
From: A Person <person@example.org>
Subject: [PATCH] iommufd: Say it
Fixes: 2ff4bed7fee7 ("iommufd: File descriptor, context, kconfig and makefiles")
---
diff --git a/drivers/iommu/iommufd/main.c b/drivers/iommu/iommufd/main.c
--- a/drivers/iommu/iommufd/main.c
+++ b/drivers/iommu/iommufd/main.c
@@ -1,1 +1,1 @@
-a
+b
END
asks() {
	: >calls
	PATH=$PWD/bin:$PATH perl scripts/get_maintainer.pl --no-git --no-git-fallback "$@" a.patch >people || return
	cat calls
}
expect "--no-git --no-git-fallback" 0 '^asked: git log .* 2ff4bed7fee7$' asks
expect "  ... and --no-fixes" 0 '!asked' asks --no-fixes
expect "  ... the maintainers are there" 0 'maintainer:IOMMUFD' cat people
