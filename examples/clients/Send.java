// Sends the lines of standard input to a stream, and ends with 0 once the relay has said that all are safe.
//   java Send.java HOST PORT STREAM

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.net.Socket;
import java.nio.charset.StandardCharsets;

class Send {
    public static void main(String[] args) throws Exception {
        var utf8 = StandardCharsets.UTF_8;
        try (var relay = new Socket(args[0], Integer.parseInt(args[1]));
                var lines = new PrintStream(relay.getOutputStream(), false, utf8);
                var answers = new BufferedReader(new InputStreamReader(relay.getInputStream(), utf8))) {
            var input = new BufferedReader(new InputStreamReader(System.in, utf8));
            for (String payload; (payload = input.readLine()) != null; ) lines.print(args[2] + " " + payload + "\n");
            lines.print("!sync 1\n");
            lines.flush();
            var answer = answers.readLine();
            if ("!synced 1".equals(answer)) return;
            System.err.println(answer);
        }
        System.exit(1);
    }
}
