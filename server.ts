#!/usr/bin/env -S npx ts-node
/**
 * An echo server (RFC 862): it accepts one TCP connection, prints what it
 * receives, sends the same bytes back, and ends when the client closes.
 *
 *     npx ts-node server.ts [host] [port]
 *
 * It prints this, while client.ts runs in another terminal:
 *
 *     Server started on localhost, listening on TCP port 54321
 *     Incoming connection from 127.0.0.1:58666...
 *     Received following data: Hello World!
 *     Server is shutting down. Bye!
 *
 * Left out on purpose: more than one client; a timeout for a silent one; the
 * last lines, if a signal ends the server while the reader of stdout is slow.
 */
import { lookup } from 'node:dns/promises';
import { type AddressInfo, createServer, isIPv6, type Server, type Socket } from 'node:net';

const HOST = 'localhost';
const PORT = 54321;
const BACKLOG = 1; // connections that may wait for accept(); Linux lets one more wait
const LINE_SIZE = 1024; // bytes of one printed line, as if recv(1024) had returned them
const LAST_LINE = 'Server is shutting down. Bye!\n';
class ExpectedError extends Error {} // reported without its stack; any other error shows it
class UsageError extends ExpectedError {}

/** The server, step by step. Comments such as accept() name a call of Python's socket module. */
async function serve(host: string, port: number): Promise<void> {
  const server = await listen(host, port); // socket(), bind(), listen()
  process.on('SIGINT', endAtSignal).on('SIGTERM', endAtSignal); // Ctrl-C and kill(1)
  console.log(`Server started on ${host}, listening on TCP port ${(server.address() as AddressInfo).port}`);
  const connection = await accept(server); // accept()
  server.close(); // close() the listening socket: a client that waits in the backlog gets an RST
  console.log(`Incoming connection from ${peerOf(connection)}...`);
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true }); // a byte order mark is printed like any character
  try {
    for await (const received of connection) { // recv(), until EOF
      await print(linesOf(received, decoder)); // decode(), print()
      await sendAll(connection, received); // sendall()
    } // close(): the loop closes the connection when it ends
  } catch (error) {
    throw systemError('connection lost', error as Error); // fail() reports it, after the last line
  } finally {
    await print(lineOf(decoder.decode()) + LAST_LINE); // the decoder may hold part of a character
  }
}

/** socket(AF_INET, SOCK_STREAM), bind(), listen(). Throws if one fails, for instance with EADDRINUSE, see bind(2). */
async function listen(host: string, port: number): Promise<Server> {
  try {
    const { address } = await lookup(host, { family: 4 }); // gethostbyname(); an address stays as it is
    const server = createServer({ allowHalfOpen: true }); // after the client's FIN, we can still send
    server.listen({ host: address, port, backlog: BACKLOG });
    await new Promise((resolve, reject) => server.once('listening', resolve).once('error', reject));
    return server.removeAllListeners('error'); // drops reject(): a later error shall end the program
  } catch (error) {
    throw systemError(`cannot listen on ${host} port ${port}`, error as Error);
  }
}

/** accept(): resolves to a new socket for one client. Node calls accept4(2) itself, and reports each client here. */
function accept(server: Server): Promise<Socket> {
  return new Promise((resolve) => server.once('connection', resolve));
}

/** print(): resolves when stdout has taken the lines, or has failed. A slow reader of stdout holds the client back. */
function print(lines: string): Promise<void> {
  return new Promise((resolve) => process.stdout.write(lines, () => resolve()));
}

/** sendall(): resolves when the system has taken the bytes. A slow client holds us back. Rejects with the error. */
function sendAll(connection: Socket, bytes: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    connection.write(bytes, (error) => (error ? reject(connection.errored) : resolve())); // errored: the cause
  });
}

/** The lines that show what was received, one for each 1,024 bytes. The decoder keeps an incomplete character. */
function linesOf(received: Buffer, decoder: InstanceType<typeof TextDecoder>): string {
  let lines = '';
  for (let start = 0; start < received.length; start += LINE_SIZE) {
    lines += lineOf(decoder.decode(received.subarray(start, start + LINE_SIZE), { stream: true }));
  }
  return lines;
}

/** The line that shows a text. There is none for an empty text: the bytes were only the start of a character. */
function lineOf(text: string): string {
  return text === '' ? '' : `Received following data: ${visible(text)}\n`;
}

/** Escapes text-reversing and control characters, except tab and newline, as \x1b or \u202e. */
function visible(text: string): string {
  return text.replace(/[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g, (character) => {
    const code = character.charCodeAt(0).toString(16);
    return code.length > 2 ? `\\u${code}` : `\\x${code.padStart(2, '0')}`;
  });
}

/** getpeername(): the client's address and port, as 127.0.0.1:58666 or [::1]:58666; unknown:0 after an RST. */
function peerOf({ remoteAddress = 'unknown', remotePort = 0 }: Socket): string {
  return `${isIPv6(remoteAddress) ? `[${remoteAddress}]` : remoteAddress}:${remotePort}`;
}

/** Ends the program at once. The system closes the sockets. */
function endAtSignal(): void {
  process.stdout.write(LAST_LINE);
  process.exit();
}

const USAGE = `Usage: npx ts-node server.ts [host] [port]
  host  address or name (looked up as IPv4) to listen on; '' for every IPv4 address (default: ${HOST})
  port  0 to 65535; 0 lets the system choose (default: ${PORT})`;

/** The host and port of the command line. Throws if an argument is wrong. --help only prints the usage. */
function parseArguments(args: string[]): { host: string; port: number } | void {
  const [host = HOST, port = String(PORT), unexpected] = args;
  const option = args.find((arg) => arg.startsWith('-'));
  if (option === '-h' || option === '--help') return console.log(USAGE);
  if (option !== undefined) throw new UsageError(`unknown option "${option}"`);
  if (unexpected !== undefined) throw new UsageError(`unexpected argument "${unexpected}"`);
  if (/^\d+$|[:[\]]/.test(host) && !isIPv6(host)) throw new UsageError(`"${host}" is neither a name nor an address`);
  if (!/^\d{1,5}$/.test(port) || Number(port) > 65535) throw new UsageError(`"${port}" is not a port from 0 to 65535`);
  return { host: host || '0.0.0.0', port: Number(port) }; // INADDR_ANY, see ip(7)
}

/** The error of a system call in words, with its code; any other error as it is. */
function systemError(what: string, error: NodeJS.ErrnoException): Error {
  return error.syscall === undefined ? error : new ExpectedError(`${what} (${error.code})`);
}

/** Reports an error once stdout has taken what was printed before. Ends with status 1, or 2 for a usage error. */
function fail(error: Error): void {
  const isUsage = error instanceof UsageError;
  const report = error instanceof ExpectedError ? `server.ts: ${visible(error.message)}` : error.stack;
  process.stdout.write('', () => {
    process.stderr.write(isUsage ? `${report}\n${USAGE}\n` : `${report}\n`, () => process.exit(isUsage ? 2 : 1));
  });
}

process.on('uncaughtException', fail); // a usage error, or a mistake in the source
process.stdout.on('error', ({ code }: NodeJS.ErrnoException) => { // the echo goes on
  if (code === 'EPIPE') return; // its reader has left, as head(1) does
  if (process.exitCode !== 1) console.error(`server.ts: cannot print (${code})`); // once
  process.exitCode = 1;
});
const options = parseArguments(process.argv.slice(process.argv[2] === '--' ? 3 : 2)); // "--" may precede them
if (options) serve(options.host, options.port).catch(fail);
