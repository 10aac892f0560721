// SPDX-License-Identifier: MIT OR GPL-2.0-only
//
// What the programs and the guard tell each other. `src/hooks/bpf/layout.rs` has the same structures in Rust; the maps are
// described in `src/hooks/bpf/object.rs`.

#pragma once

#include "kernel.h"

// Settings, written by the guard alone.
struct settings {
	u32 flags;
	u32 pins;		// device of the file system that the links are pinned on
	u64 epoch;		// of the policy and mode in force
	u64 epoch_before;
	u64 before_until;	// until when verdicts of the epoch before are still good, in nanoseconds since boot
	u64 programs[4];	// two programs, device and inode each, that are the guard's own
	u32 maps[8];		// the numbers of our maps
	u32 elsewhere;		// what is refused on file systems that the guard has not looked at
	u32 labels;		// the algorithms that labels may be written in, a bit each by the kernel's number; NO_ALGORITHM for none
};

#define ENFORCE 1		// refuse what has no good verdict
#define CLOSED 2		// go on refusing when the guard has died
#define PROTECT 4		// protect the guard's process, files and maps
#define LABELS_BY_RULE 8	// `labels` are those of a rule for SETXATTR_CHECK, else what the guard can compute
#define EVM 16			// security.evm is the guard's to write
#define LOAD_MODULE 32		// refuse modules, firmware, kernels whose content no file holds
#define LOAD_FIRMWARE 64
#define LOAD_KEXEC 128

// The process of the guard; 0 when there is none any more. Written by the guard when it starts, and here when it ends.
struct alive {
	u32 process;
	u32 ended;		// the one that was ended last
};

// What a process is to the guard, bits. Written by the guard but for the last one; a process that ends, or that executes another
// program, is nothing any more.
#define STARTER 1		// has started the guard
#define SENTINEL 2		// ends the guard if it hangs
#define SOFTWARE_TPM 4		// its accesses pass
#define ROLLS_BACK 8		// ends a guard that does not answer when a switch of the mode is to be undone
#define OWN_PROGRAM 16		// root's, runs the guard's program, and nothing but what that is made of has come into it

// What is asked of files, bits; beside an inode what it has passed.
#define OPEN 1
#define EXEC 2
#define MMAP 4
#define MODULE 8
#define FIRMWARE 16
#define KEXEC_IMAGE 32
#define KEXEC_INITRAMFS 64
#define LABEL 128		// to have its label written, which no verdict tells
#define IMMUTABLE 256		// signed: not to be opened for writing
#define PORTABLE 512		// with a portable EVM signature: neither are its attributes to change
#define EVERYBODY 1024		// whoever comes
#define STAMPED 2048		// size and time of change tell
#define GUARDS_OWN 4096		// the guard's own file: nobody else's to change
#define LASTING 8192		// good in every epoch
#define GUARDS_PROGRAM 16384	// what the guard's programs are made of
#define UNSETTLED 32768		// when it was judged, a change of attributes had been counted that may not have been made yet
#define BELOW 65536		// on an overlay: another inode holds the data
#define MPROTECT 131072		// in a record: MMAP, of what is mapped already

// Beside an inode, written by the guard alone.
struct verdict {
	u32 bits;
	u32 content;		// how often the content had begun to change
	u32 attributes;		// how often attributes had
	u32 modified_nsec;
	u64 epoch;
	s64 modified;		// last change of the content, in seconds since 1970
	s64 size;
	s64 altered;		// last change of attributes or content, in seconds since 1970
	u32 altered_nsec;
	u32 unused;
};

// Beside an inode that the guard has begun to judge, counted here.
struct changes {
	u32 content;
	u32 attributes;
	u64 when;		// attributes last changed, in nanoseconds since boot
};

// Why something was refused.
#define NO_VERDICT 1
#define CHANGED 2
#define WRITERS 3
#define SIGNED 4
#define OTHER_EPOCH 5
#define NOT_ASKED 6		// judged, but not for this
#define NOT_WATCHED 7
#define NO_FILE 8
#define GUARD_DEAD 9
#define PROTECTED 10
#define EVM_LABEL 11
#define PORTABLE_LABEL 12
#define LABEL_DENIED 13		// the policy does not allow its algorithm
#define LABEL_UNAVAILABLE 14	// nobody could compute it

// The algorithm of labels that name none, or one that is not known: the default hash.
#define NO_ALGORITHM 31

// What is told.
struct record {
	u32 asked;		// one of the bits above, or MMAP and MPROTECT; 0 for what is not about a verdict
	u32 why;
	u32 process;
	u32 thread;
	u32 uid;
	u32 device;
	u64 inode;
	char command[16];
	char name[64];
	u32 algorithm;		// of a label
	u32 unused;
};
