# Each target calls a script; see there. Variables, on the command line or in
# the environment:
#   BUILD    the folder for all that is made (default: build)
#   VARIANT  the kernel to build: plain, debug or faults (default: plain)
#   ACCEL    how the virtual machines run: kvm or tcg
#   TREE     for apply: the kernel tree

VARIANT ?= plain
MAKEFLAGS += --no-print-directory

.PHONY: help demo check check-base-faults check-series tree export kernel apply packages

help:		## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /make \1	/p' $(firstword $(MAKEFILE_LIST)) | expand -t 28

demo:		## show what the series does, in virtual machines
	@demo/run

check:		## run all checks
	@scripts/check

check-base-faults:	## show that the base has the faults that part 2 mends
	@scripts/check-base-faults

check-series:	## check the series patch by patch
	@scripts/check-series

tree:		## get the kernel source and apply the series, in build/linux
	@scripts/tree

export:		## write series/ and linux/ from the commits in build/linux
	@scripts/export

kernel: tree	## build the kernel (VARIANT=plain or debug)
	@scripts/kernel '$(VARIANT)'

apply:		## apply the series to a kernel tree of your own (TREE=folder)
	@scripts/apply "$$TREE"

packages:	## install the Debian packages that all this needs
	@scripts/packages
