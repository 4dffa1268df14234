/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How the acts of the demo say what they do: a line for each step, with the seconds
 * since the start, and what some of them prove together, in colour with the argument
 * "color". The first step that does not come out as it must is the last one.
 */
#ifndef DEMO_SAY_H
#define DEMO_SAY_H

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int steps;
static struct timespec start;
static const char *bold = "", *green = "", *red = "", *plain = "";

/* To be called first, with the arguments of the program */
static void begin(int argc, char **argv)
{
	clock_gettime(CLOCK_MONOTONIC, &start);
	if (argc > 1 && !strcmp(argv[1], "color")) {
		bold = "\033[1m";
		green = "\033[32m";
		red = "\033[31m";
		plain = "\033[0m";
	}
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec - start.tv_sec + (now.tv_nsec - start.tv_nsec) / 1e9;
}

static void title(const char *what)
{
	printf("\n%s%s%s\n", bold, what, plain);
}

__attribute__((format(printf, 1, 2)))
static void say(const char *format, ...)
{
	va_list args;

	printf("%2d %7.3f s  ", ++steps, seconds());
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
	fflush(stdout);
}

/* What the steps since the last call of this have proved */
static void proves(const char *what)
{
	printf("   %s=> %s%s\n", green, what, plain);
	fflush(stdout);
}

static void fail(const char *what)
{
	printf("    %sFAILED: %s: %s%s\n", red, what, strerror(errno), plain);
	exit(1);
}

#endif
